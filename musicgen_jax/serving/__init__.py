"""Many requests through one model: slots, and the threads that fill them.

engine       N slots in one compiled program
shapes the lengths that clips are padded to: they depend only on the request and the model
course       one clip on its way through its windows
clip         the same with its audio and its ticket, as the scheduler holds it
ticket a listener's handle on the clip meanwhile
scheduler    the queue, and the threads that own the device and the codec
slot_piece   the clips of one call through slots
"""
