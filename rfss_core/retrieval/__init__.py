"""Retrieval of labelled slices: the support set, its FAISS index, and the strategies that search it."""

from rfss_core.retrieval.core_set import CoreSet, choose_core_set
from rfss_core.retrieval.coverage import Coverage
from rfss_core.retrieval.draw import draw_evenly
from rfss_core.retrieval.duplicates import DuplicateGroup, near_duplicates
from rfss_core.retrieval.index import FlatIndex, VectorIndex
from rfss_core.retrieval.neighbours import Neighbours
from rfss_core.retrieval.pool import SlicePool
from rfss_core.retrieval.retriever import Retriever
from rfss_core.retrieval.support import SupportSet
from rfss_core.retrieval.vectors import unit_vectors

__all__ = [
    "CoreSet",
    "Coverage",
    "DuplicateGroup",
    "FlatIndex",
    "Neighbours",
    "Retriever",
    "SlicePool",
    "SupportSet",
    "VectorIndex",
    "choose_core_set",
    "draw_evenly",
    "near_duplicates",
    "unit_vectors",
]
