"""Tell what runs would cost and need, before anything is spent: `python train.py … plan=true`.

Each formula is a short function that says where it comes from. Counts come from `algorithm.cost`, seconds from measurements or
from a table of devices. Nothing here submits, trains or writes.
"""
