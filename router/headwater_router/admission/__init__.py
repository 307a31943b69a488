"""Who may send a request on, and when."""
