"""The queue in front of placement: who goes next, who is refused at once and when to come again.

ask.py        what a request says, what is decided about it
line.py       those that wait, in order
room.py       whether the fleet can take one more now, and how long it has work for
drain.py      how much slower than that the queue really drains
admission.py  the decisions
door.py       the only part that knows an event loop
"""
