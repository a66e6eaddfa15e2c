"""Two models' answers side by side: pairs, prompts, judges, verdicts and the scores they give."""
