"""What a run says: `summary` turns records into figures, the other rooms only print them."""
