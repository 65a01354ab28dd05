"""How an answer is scored, in processes that can be killed. What is asked is in `tasks`."""
