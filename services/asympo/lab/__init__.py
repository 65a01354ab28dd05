"""The laboratory: is the loss stable on stale data?"""
