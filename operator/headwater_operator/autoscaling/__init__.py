"""How many replicas the load asks for: `gateway` reads it, `decide` decides, `follow` keeps count."""
