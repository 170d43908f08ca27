"""How fast the prefix index is: matching, applying, hashing, memory, restart, and how soon an event is seen."""
