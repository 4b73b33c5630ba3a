"""Where the public regions of AWS, Azure and Google Cloud lie.

AWS and Azure publish no carbon intensity of a region; Google does, and codecarbon's table has most of its regions. A
region is placed in the smallest area of which codecarbon has a figure: a US state, a province of Canada or China, a
country.

Sources, as read in 2026:
    AWS:    docs.aws.amazon.com/global-infrastructure/latest/regions/aws-regions.html, "AWS Regions"; Canada (Central)
            is the Montreal area by AWS's page "Global Infrastructure". GovCloud's documents name no state.
    Azure:  learn.microsoft.com/azure/reliability/regions-list, "Azure regions list", column "Physical location"; for
            governments and China: learn.microsoft.com/azure/azure-government and /azure/china.
    Google: cloud.google.com/compute/docs/regions-zones, for regions that codecarbon's table has not yet.
"""

from __future__ import annotations

from functools import cache

DOCUMENTS = {"aws": "AWS's list of Regions", "azure": "Azure's list of regions", "gcp": "Google's list of regions"}

# region, the zone whose figure stands for it, the place as its provider names it
_AWS = """
af-south-1      ZAF     Cape Town
ap-east-1       HKG     Hong Kong
ap-east-2       TWN     Taipei
ap-northeast-1  JPN     Tokyo
ap-northeast-2  KOR     Seoul
ap-northeast-3  JPN     Osaka
ap-south-1      IND     Mumbai
ap-south-2      IND     Hyderabad
ap-southeast-1  SGP     Singapore
ap-southeast-2  AUS     Sydney
ap-southeast-3  IDN     Jakarta
ap-southeast-4  AUS     Melbourne
ap-southeast-5  MYS     Malaysia
ap-southeast-6  NZL     New Zealand
ap-southeast-7  THA     Thailand
ca-central-1    CA-QC   Montreal
ca-west-1       CA-AB   Calgary
cn-north-1      CN-BJ   Beijing
cn-northwest-1  CN-NX   Ningxia
eu-central-1    DEU     Frankfurt
eu-central-2    CHE     Zurich
eu-north-1      SWE     Stockholm
eu-south-1      ITA     Milan
eu-south-2      ESP     Spain
eu-west-1       IRL     Ireland
eu-west-2       GBR     London
eu-west-3       FRA     Paris
il-central-1    ISR     Tel Aviv
me-central-1    ARE     UAE
me-south-1      BHR     Bahrain
mx-central-1    MEX     Mexico
sa-east-1       BRA     São Paulo
us-east-1       US-VA   N. Virginia
us-east-2       US-OH   Ohio
us-gov-east-1   USA     GovCloud, US-East
us-gov-west-1   USA     GovCloud, US-West
us-west-1       US-CA   N. California
us-west-2       US-OR   Oregon
"""
_AZURE = """
australiacentral    AUS     Canberra
australiacentral2   AUS     Canberra
australiaeast       AUS     New South Wales
australiasoutheast  AUS     Victoria
austriaeast         AUT     Vienna
belgiumcentral      BEL     Brussels
brazilsouth         BRA     São Paulo State
brazilsoutheast     BRA     Rio
canadacentral       CA-ON   Toronto
canadaeast          CA-QC   Quebec
centralindia        IND     Pune
centralus           US-IA   Iowa
chilecentral        CHL     Santiago
chinaeast           CN-SH   Shanghai
chinaeast2          CN-SH   Shanghai
chinanorth          CN-BJ   Beijing
chinanorth2         CN-BJ   Beijing
denmarkeast         DNK     Denmark
eastasia            HKG     Hong Kong
eastus              US-VA   Virginia
eastus2             US-VA   Virginia
francecentral       FRA     Paris
francesouth         FRA     Marseille
germanynorth        DEU     Berlin
germanywestcentral  DEU     Frankfurt
indonesiacentral    IDN     Jakarta
israelcentral       ISR     Israel
italynorth          ITA     Milan
japaneast           JPN     Tokyo, Saitama
japanwest           JPN     Osaka
jioindiacentral     IND     Nagpur
jioindiawest        IND     Jamnagar
koreacentral        KOR     Seoul
koreasouth          KOR     Busan
malaysiawest        MYS     Kuala Lumpur
mexicocentral       MEX     Querétaro State
newzealandnorth     NZL     Auckland
northcentralus      US-IL   Illinois
northeurope         IRL     Ireland
norwayeast          NOR     Norway
norwaywest          NOR     Norway
polandcentral       POL     Warsaw
qatarcentral        QAT     Doha
southafricanorth    ZAF     Johannesburg
southafricawest     ZAF     Cape Town
southcentralus      US-TX   Texas
southeastasia       SGP     Singapore
southindia          IND     Chennai
spaincentral        ESP     Madrid
swedencentral       SWE     Gävle
swedensouth         SWE     Sweden
switzerlandnorth    CHE     Zurich
switzerlandwest     CHE     Geneva
uaecentral          ARE     Abu Dhabi
uaenorth            ARE     Dubai
uksouth             GBR     London
ukwest              GBR     Cardiff
usgovarizona        US-AZ   Arizona
usgovtexas          US-TX   Texas
usgovvirginia       US-VA   Virginia
westcentralus       US-WY   Wyoming
westeurope          NLD     Netherlands
westindia           IND     Mumbai
westus              US-CA   California
westus2             US-WA   Washington
westus3             US-AZ   Phoenix
"""
_GOOGLE = """
europe-north2       SWE     Stockholm
northamerica-south1 MEX     Querétaro
"""


@cache
def placed() -> dict[str, tuple[str, str]]:
    """Region as "aws:eu-west-3" → (the zone whose figure stands for it, the place): ("FRA", "Paris")."""
    regions = {}
    for provider, table in (("aws", _AWS), ("azure", _AZURE), ("gcp", _GOOGLE)):
        for line in table.strip().splitlines():
            region, zone, place = line.split(maxsplit=2)
            regions[f"{provider}:{region}"] = (zone, place)
    return regions
