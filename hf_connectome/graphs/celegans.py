"""The hermaphrodite nematode C. elegans: 300 neurons, read from the PyPI package ``cect``.

The package is not imported, which would take seconds and a dozen others: one of its files is read.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from hf_connectome.errors import ConfigError
from hf_connectome.graphs.base import NeuronGraph
from hf_connectome.graphs.files import read_edges

_SENSORY = """
    MCL MCR MI NSML NSMR ASIL ASIR ASJL ASJR AWAL AWAR ASGL ASGR AWBL AWBR ASEL ASER ADFL ADFR AFDL
    AFDR AWCL AWCR ASKL ASKR ASHL ASHR ADLL ADLR BAGL BAGR URXL URXR ALNL ALNR PLNL PLNR SDQL SDQR
    AQR PQR ALML ALMR AVM PVM PLML PLMR FLPL FLPR DVA PVDL PVDR ADEL ADER PDEL PDER PHAL PHAR PHBL
    PHBR PHCL PHCR IL2DL IL2DR IL2L IL2R IL2VL IL2VR CEPDL CEPDR CEPVL CEPVR URYDL URYDR URYVL URYVR
    OLLL OLLR OLQDL OLQDR OLQVL OLQVR IL1DL IL1DR IL1L IL1R IL1VL IL1VR
"""
_INTER = """
    I1L I1R I2L I2R I3 I4 I5 I6 AINL AINR AIML AIMR RIH URBL URBR RIR AIYL AIYR AIAL AIAR AUAL AUAR
    AIZL AIZR RIS ALA PVQL PVQR ADAL ADAR RIFL RIFR BDUL BDUR PVR AVFL AVFR AVHL AVHR PVPL PVPR LUAL
    LUAR PVNL PVNR AVG DVB RIBL RIBR RIGL RIGR RMGL RMGR AIBL AIBR RICL RICR SAADL SAADR SAAVL SAAVR
    AVKL AVKR DVC AVJL AVJR PVT AVDL AVDR AVL PVWL PVWR RIAL RIAR RIML RIMR AVEL AVER RMFL RMFR RID
    AVBL AVBR AVAL AVAR PVCL PVCR RIPL RIPR
"""
_MOTOR = """
    M1 M2L M2R M3L M3R M4 M5 URADL URADR URAVL URAVR RMEL RMER RMED RMEV RMDDL RMDDR RMDL RMDR RMDVL
    RMDVR RIVL RIVR RMHL RMHR SABD SABVL SABVR SMDDL SMDDR SMDVL SMDVR SMBDL SMBDR SMBVL SMBVR SIBDL
    SIBDR SIBVL SIBVR SIADL SIADR SIAVL SIAVR DA01 DA02 DA03 DA04 DA05 DA06 DA07 DA08 DA09 PDA DB01
    DB02 DB03 DB04 DB05 DB06 DB07 AS01 AS02 AS03 AS04 AS05 AS06 AS07 AS08 AS09 AS10 AS11 PDB DD01
    DD02 DD03 DD04 DD05 DD06 VA01 VA02 VA03 VA04 VA05 VA06 VA07 VA08 VA09 VA10 VA11 VA12 VB01 VB02
    VB03 VB04 VB05 VB06 VB07 VB08 VB09 VB10 VB11 VD01 VD02 VD03 VD04 VD05 VD06 VD07 VD08 VD09 VD10
    VD11 VD12 VD13 HSNL HSNR VC01 VC02 VC03 VC04 VC05 VC06
"""
# Sections of the adjacency matrices SI 5 of Cook et al. 2019; of the pharynx, MC, MI and NSM count
# as sensory, I1 to I6 as inter, M1 to M5 as motor, and the sex-specific HSN and VC as motor.

_FILE = "herm_full_edgelist.csv"


def celegans_graph() -> NeuronGraph:
    """Return the 300 neurons and 5,084 edges, chemical or electrical, 45 self loops among them.

    88 are sensory, 89 inter, 123 motor. The list also has muscles and other cells, CANL and CANR
    among them; synapses with them are left out.

    Raises:
        ConfigError: ``cect`` is not installed, or its file is not there.

    Source: Cook et al. 2019, Whole-animal connectomes of both Caenorhabditis elegans sexes
    (doi:10.1038/s41586-019-1352-7), as edited by WormWiring. The paper's text was not read.
    """
    sensory, inter, motor = (names.split() for names in (_SENSORY, _INTER, _MOTOR))
    known = {*sensory, *inter, *motor}
    edges = [edge for edge in read_edges(_data_file()) if known.issuperset(edge[:2])]
    return NeuronGraph.from_edges((*sensory, *inter, *motor), edges, inputs=sensory, outputs=motor)


def _data_file() -> Path:
    spec = find_spec("cect")
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        file = Path(folder) / "data" / _FILE
        if file.is_file():
            return file
    raise ConfigError(
        f"the wiring 'celegans' reads {_FILE} of the package cect, which is not installed. Run: "
        "pip install --no-deps cect==0.3.5 (only this file of it is used)."
    )
