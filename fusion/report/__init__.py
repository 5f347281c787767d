"""The report page: one HTML file that holds its pictures, sounds and figures and asks for nothing.

write_report(run / "report.html", ReportContent(about=..., retrieval=..., galleries=...))
"""

from fusion.report.content import (
    About,
    CaptionExample,
    Captions,
    Curve,
    Gallery,
    Iteration,
    Picture,
    Query,
    Recording,
    ReportContent,
    Result,
    Retrieval,
    Training,
)
from fusion.report.writer import write_report

__all__ = [
    "About",
    "CaptionExample",
    "Captions",
    "Curve",
    "Gallery",
    "Iteration",
    "Picture",
    "Query",
    "Recording",
    "ReportContent",
    "Result",
    "Retrieval",
    "Training",
    "write_report",
]
