#!/bin/sh
# Compress the numbers up to $1 at level $2, and print how many times smaller they became.
plain=$(seq "$1" | wc -c)
packed=$(seq "$1" | gzip "-$2" | wc -c)
awk "BEGIN { printf \"ratio=%.4f\n\", $plain / $packed }"
