"""Many requests through one model: slots, and the threads that fill them.

engine       N slots in one compiled program
shapes       what clips are padded to: it follows from the request and the model alone
course       one clip on its way through its windows
clip         the same with its audio and its ticket, as the scheduler holds it
ticket       what a listener holds meanwhile
scheduler    the queue, and the threads that own the device and the codec
slot_piece   the clips of one call through slots
"""
