"""A measured, pre-registered A/B on a user's own traffic: does it pay, for me?

design      what is going to be done, fixed and hashed before the first request
rules       what is registered in words
questions   the two things that can be asked
program     which program measures, for the design
trial       the runs, in the order the design fixed
attended    a cluster that is asked for its prefill workers where none was used
block       what a block came to
verdict     pays, does not pay, cannot tell
report      the terminal's text and the page
"""
