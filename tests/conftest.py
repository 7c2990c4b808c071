from hypothesis import settings

# A first call compiles a kernel, which takes seconds: no deadline. Derandomised: a failure is the same failure again.
settings.register_profile("dilute", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("dilute")
