"""Hold the sentences that stand above and below the tables and figures of the report."""

MEANS = "Means over seeds [95 % interval]; with n < 3 the seeds' values in parentheses and no interval."
CLAIMS = """Estimates [95 % interval] of each comparison that a claim allows: at two equal costs, or at tuned and at common
learning rates. Differences are in evaluation reward; λ's is a correlation. How a verdict is reached stands below."""
TO_TARGET = """Cost to the target: restricted mean up to the budget (Kaplan-Meier); runs that never reached it are
right-censored, not dropped. Default target: the base plus half of the best method's gain."""
PHASES = "An iteration's device-seconds are divided among its phases as rank 0's wall time is."
HOLM = "p: Holm's correction over this table."
REPEATS = "Means over repeats [95 % interval]; n counts repeats."
VERDICTS = """Supported: the estimate and its 95 % interval lie on the claim's side, and p is below 0.05 in a paired t test and
in a sign-flip test, each with Holm's correction over this table. Contradicted: the same on the other side. Not resolved:
anything else; the row gives the smallest effect that a t test at this n and spread finds four times in five. Below n = 12
nothing is tested, because sign flips have too few values of p to pass the correction: such a row is an interval only. n
counts seeds; for λ it counts repeats of a measurement on the untrained model, under the same rule."""
LAMBDA = """λ's correlation is nearly true by construction: λ is a factor of a step's gradient. It would have been contradicted,
by an interval below 0.9, had the rest of the gradient varied over the steps about as much as λ and not along with it. A
slope of 1 would be proportionality; a larger one says that the rest grows with λ, which weights 1/λ leave in."""
ABLATION = """Rewards are compared at equal budget. Methods are paired by seed, and by prompt if both have the prompt. For
both SDEs together, each is resampled separately, with n seeds each."""
STABILITY = """A seed collapsed if it failed on numbers that were not finite, or if its last evaluation lies below its
first one: the whole 95 % interval of the difference, paired over prompts, below 0. A seed fell back if its last
evaluation has lost more than half of the gain of its best one."""
MECHANISM = """Measured without training; n counts repeats, not seeds. λ is the factor by which discretisation alone scales a
step's gradient. Alignment is the cosine of one iteration's policy gradient with the exact reward gradient."""

FRONTIER = """When a method's mean curve first reaches the mean reward with which Flash-GRPO's runs end, and how many times
sooner that is than Flash's own end; intervals are bootstraps over the seeds of both. A dash: it stays below. Diversity: mean
pairwise RMS distance between the videos of one prompt, at that cost; a method that reaches the reward at a lower one has paid
with it. On the front: none gets there sooner with videos at least as diverse, by means. A method whose SDE has no runs of Flash
is compared with those on the linear SDE."""
UPPER_LEFT = "Left is sooner, up is more diverse; on the front are those that have nobody to their upper left."
PAID_WITH_DIVERSITY = "Of two lines the upper one has paid less diversity for the same reward, at whatever cost."
VIDEOS = """Of each method the run with the lowest seed that kept videos, as named. A video starts from the same noise before
and after; the number is the prompt's evaluation reward, the mean over its noises, of which the video shows the first. Prompts
are sorted by their mean gain over the methods, the least first; a gain that is not above 0 is marked."""
CHANGED = """Measured on the same evaluation videos as the reward. Held-out reward: one that no run trains on. Diversity:
mean pairwise RMS distance between the videos of one prompt. Distance from the base: mean squared difference of the velocity
from the base model's."""
GUARDS = """A guard holds after an evaluation, by a run's own threshold in stop_when or else by the usual one. Held-out reward
fell: three evaluations in a row below the base's, by more than three standard errors of the difference, paired over prompts.
Diversity lost: below half of the base's. Far from the base: above a threshold, where a run has one. A guard ends a run only
where stop_when says so; its last reward then counts at equal cost."""
