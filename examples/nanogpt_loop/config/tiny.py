# A model that trains in seconds on one core.
n_layer, n_head, n_embd = 2, 2, 32
block_size = 16
batch_size = 8
init_from = "resume"  # if there is something to resume from
