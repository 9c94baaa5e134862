"""Search compression: which results of a search are worth an agent's tokens."""

from agentinfer.compress.search.endpoint import CompletionsScorer, SGLangScorer
from agentinfer.compress.search.ranking import Ranking, Verdict, rank, rank_sparse
from agentinfer.compress.search.results import SearchInputError, SearchResult, read_results
from agentinfer.compress.search.scoring import Scorer, ScorerError
from agentinfer.compress.search.settings import SearchSettings
from agentinfer.compress.search.tool import Ranker, ranked

__all__ = [
    "CompletionsScorer",
    "Ranker",
    "Ranking",
    "SGLangScorer",
    "Scorer",
    "ScorerError",
    "SearchInputError",
    "SearchResult",
    "SearchSettings",
    "Verdict",
    "rank",
    "rank_sparse",
    "ranked",
    "read_results",
]
