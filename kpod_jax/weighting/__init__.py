"""Token weights by mask learning (Eq. 2-7), independent of how they are used."""
