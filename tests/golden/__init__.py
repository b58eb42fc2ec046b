"""What trtq writes today, model by model and path by path: see tests/test_golden.py."""
