"""The engines behind the router: which there are, whether they take requests, and how busy they say they are."""
