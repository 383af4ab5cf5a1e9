"""What an answer is worth: functions of answers that give the same numbers whenever they are called.

A built-in one is the module of its name here, with a function `reward` (`answer.Reward`); it joins `RewardName` in
`ava_core.config.rewards`. `reward_set.RewardSet` computes several of them and their weighted mean; it isn't imported
here, or steps that only write down what answers are judged by would have all rewards in their keys.
"""

from ava_core.alignment.rewards.answer import Answer, Reward

__all__ = ["Answer", "Reward"]
