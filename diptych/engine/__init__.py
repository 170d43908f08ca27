"""The engine both pools run: a pure scheduler and block pool, and a torch runner behind one small interface.

Importing this package or its pure modules (`interface`, `block_pool`, `scheduler`) never imports torch, so the
simulator can reuse them.
"""
