"""Many requests through one model: slots, and the thread that fills them.

engine       N slots in one compiled program
scheduler    the queue, the threads, the tickets
"""
