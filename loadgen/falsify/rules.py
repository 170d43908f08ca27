"""What is registered in words. A change here is another design: raise the schema with it."""

PRIMARY = (
    "attainment: of the requests meant to be sent after the warm-up, the share whose first token came within ttft_ms "
    "and whose mean time per further token was within tpot_ms; a failed or refused request is a miss, and so is an "
    "answer that is shorter than asked for. At equal times of sending this is goodput in other units."
)
EFFECT = "attainment of the first arm minus attainment of the second, within a block"
STOPPING = "all blocks are run; nobody looks in between; stopped early means no verdict"
VOID = (
    "a trial is void, without a verdict, where the cluster is not what the arm says: its router, asked whenever the "
    "arm changes, places by another policy or was told otherwise of remote prefill; a worker is missing then, or a "
    "prefill worker after a run that used none; requests of an arm without prefill workers were prefilled by one; or a "
    "running cluster serves another model than the one registered"
)
EXCLUSION = (
    "only by the generator's own account (it fell behind its schedule), never by a figure of the servers: a block "
    "with such a run is run once more, both arms, and left out if it happens again; below two thirds of the blocks "
    "there is no verdict. A router that may use prefill workers and finds none worth while is no reason: the block "
    "counts, and the verdict says for how many requests one was used"
)
ANALYSIS = (
    "Student's t over the blocks' differences, two-sided, 95 %; their standard deviation is taken as no less than √2 "
    "over the requests of the smallest run, one request more or less in each arm; cut at -1 and 1. Pays: the whole "
    "interval is at or above the minimal effect. Does not pay: the whole interval is below it. Otherwise: cannot tell."
)
