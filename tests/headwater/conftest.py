"""Property tests draw the same examples everywhere, and a slow machine does not fail them."""

from hypothesis import HealthCheck, settings

settings.register_profile("headwater", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("headwater")
