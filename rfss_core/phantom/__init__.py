"""Procedural cardiac short-axis phantoms: stand-ins for the demo and the tests, not patients.

What is modelled: a left ventricle (cavity, myocardium, papillary muscles), a right ventricle and its thin wall, the
atria and great vessels above the base, epicardial fat, and the neighbours that a scan shows (chest wall, lungs with
vessels, mediastinum, liver, stomach, spine, descending aorta), each of a size, place and shape of its own in every
phantom. A phantom is normal or has one of three conditions (dilated, hypertrophic, enlarged right ventricle), and is
imaged at end-diastole and at end-systole. The scanner adds partial volume, a bias field, Rician noise, and a contrast
and a gain that differ from phantom to phantom.

What is not modelled: motion and flow artefacts, through-plane motion between slices, scars, valves, other sequences
than balanced steady-state free precession. Phantoms are easier than patients: a figure measured on them says that the
software works, and nothing about how well it segments a real heart.
"""

from rfss_core.phantom.anatomy import Anatomy, Condition, Phase, Tissue
from rfss_core.phantom.cohort import write_cohort
from rfss_core.phantom.generator import CLASSES, Acquisition, Phantom, PhantomSettings

__all__ = [
    "CLASSES",
    "Acquisition",
    "Anatomy",
    "Condition",
    "Phantom",
    "PhantomSettings",
    "Phase",
    "Tissue",
    "write_cohort",
]
