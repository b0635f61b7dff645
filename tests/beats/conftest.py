"""Properties are timed by the budget of the whole suite, not one example at a time on a busy machine."""

import hypothesis

hypothesis.settings.register_profile("beats", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("beats")
