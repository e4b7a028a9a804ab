"""Text in, text out: every `.rg` file below is one test, run by `test_cases.py`."""
