"""A measured, pre-registered A/B on a user's own traffic: does it pay, for me?

design      what is going to be done, fixed and hashed before the first request
questions   the two things that can be asked
trial       the runs, in the order the design fixed
verdict     pays, does not pay, cannot tell
report      the terminal's text and the page
"""
