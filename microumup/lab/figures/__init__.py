"""The paper's figures: run at a size of your choice, drawn, and judged in numbers.

A module per question, and in it everything of its figures: which runs they take, what is claimed of them, how they are
drawn, and what they mean.

    width      does the best learning rate stay over width?      fig1-left, fig2-left, fig4, fig5
    fp8        does a plain cast to FP8 train?                   fig1-right, fig7
    search     how much of a search is needed?                   fig2-right
    coupling   do hyperparameters depend on each other?          fig10, fig11
    horizons   and over steps, batch size and depth?             fig6
    scales     where do the tensors lie, and what moves them?    fig3, fig8, fig9
    rules      do models, ops, residual do what the paper says?  table1, table4, lemma-c1, eq22
    adam       which ε does Adam bear?                           adam-eps

What they share: `settings` (how large the runs are), `rows` (from a CSV to numbers), `judging` (criteria and verdicts),
`look` (of pictures), `figure` (from runs to files), `store` (of runs), `page` (docs/results.md) and `command`.
"""
