"""The latency core: which level of the hierarchy serves each access of a reference stream.

`system` is the way in. Below it, each idea has a module: `recency` (LRU by order), `hierarchy`
(the cache levels), `coherence` (between sockets), `tlb`, `walk` (and its paging-structure caches),
`interval` (what overlaps), `counts` (what comes out).
"""
