"""Token weights by mask learning (Eq. 2-7). Nothing here knows what they are used for."""
