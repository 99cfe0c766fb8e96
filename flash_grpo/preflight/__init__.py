"""Ten minutes on the very nodes before a run: does everything that it needs work there, and how fast?"""
