"""The latency core: which level of the hierarchy serves each access of a reference stream.

`system` is the way in and `checked` what may pass, `loop` the stages a batch of records goes
through: `front` (its `runs`, first-level TLBs), `translate` (STLB, `walk`), `ahead` (L1),
`hierarchy` with `prefetch` (L2 and beyond: an inclusive LLC, or a `victim` cache), `coherence`
(between cores and between LLCs, on their `copies`), `tally` with `interval` (what overlaps). Below
them `tlb`, `recency` (LRU by order), `vector` (rows eight words at a time) and `masks` (columns 32
records at a time); `view` says where everything lies, `pages` what the stages need of each page,
`batch` what they hand each other, `counts` what comes out.
"""
