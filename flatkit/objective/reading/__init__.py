"""How data of any kind become samples in memory."""
