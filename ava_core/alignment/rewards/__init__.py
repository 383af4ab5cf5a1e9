"""What an answer is worth: functions of answers that give the same numbers whenever they are called.

A built-in one is the module of its name here, with a function `reward` (`answer.Reward`); it joins `RewardName` in
`ava_core.config.rewards`. `RewardSet` computes several of them and their weighted mean.
"""

from ava_core.alignment.rewards.answer import Answer, Reward
from ava_core.alignment.rewards.reward_set import RewardSet, Scores

__all__ = ["Answer", "Reward", "RewardSet", "Scores"]
