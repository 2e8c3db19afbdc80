"""Many requests through one model: slots, and the threads that fill them.

engine       N slots in one compiled program
course       one clip on its way through its windows
ticket       what a listener holds meanwhile
scheduler    the queue, and the threads that own the device and the codec
slot_piece   the clips of one call through slots
"""
