"""What the model knows by heart: countries, categories, names and units.

Plain tables; nothing here is random. Lists that feed "list N of them" stand in the order in which a person
would name them, since the generator prefers the front of a list.
"""

from typing import Final

_CAPITALS_BY_CONTINENT: Final = {
    "Europe": """
        France:Paris Germany:Berlin Italy:Rome Spain:Madrid United_Kingdom:London Portugal:Lisbon
        Greece:Athens Poland:Warsaw Austria:Vienna Switzerland:Bern Netherlands:Amsterdam Belgium:Brussels
        Sweden:Stockholm Norway:Oslo Denmark:Copenhagen Finland:Helsinki Ireland:Dublin Hungary:Budapest
        Czech_Republic:Prague Romania:Bucharest Bulgaria:Sofia Croatia:Zagreb Serbia:Belgrade
        Slovakia:Bratislava Slovenia:Ljubljana Ukraine:Kyiv Russia:Moscow Belarus:Minsk Lithuania:Vilnius
        Latvia:Riga Estonia:Tallinn Iceland:Reykjavik Albania:Tirana North_Macedonia:Skopje
        Montenegro:Podgorica Bosnia_and_Herzegovina:Sarajevo Moldova:Chisinau Malta:Valletta
        Luxembourg:Luxembourg_City Monaco:Monaco_City Andorra:Andorra_la_Vella Liechtenstein:Vaduz
        San_Marino:San_Marino_City Vatican_City:Vatican_City Cyprus:Nicosia Kosovo:Pristina""",
    "Asia": """
        Japan:Tokyo China:Beijing India:New_Delhi South_Korea:Seoul North_Korea:Pyongyang Thailand:Bangkok
        Vietnam:Hanoi Indonesia:Jakarta Malaysia:Kuala_Lumpur Philippines:Manila Singapore:Singapore_City
        Turkey:Ankara Iran:Tehran Iraq:Baghdad Israel:Jerusalem Jordan:Amman Lebanon:Beirut Syria:Damascus
        Saudi_Arabia:Riyadh Yemen:Sanaa Oman:Muscat Qatar:Doha Kuwait:Kuwait_City Bahrain:Manama
        United_Arab_Emirates:Abu_Dhabi Pakistan:Islamabad Afghanistan:Kabul Bangladesh:Dhaka Nepal:Kathmandu
        Bhutan:Thimphu Sri_Lanka:Colombo Maldives:Male Myanmar:Naypyidaw Laos:Vientiane Cambodia:Phnom_Penh
        Mongolia:Ulaanbaatar Kazakhstan:Astana Uzbekistan:Tashkent Turkmenistan:Ashgabat Kyrgyzstan:Bishkek
        Tajikistan:Dushanbe Georgia:Tbilisi Armenia:Yerevan Azerbaijan:Baku Brunei:Bandar_Seri_Begawan
        Timor-Leste:Dili Palestine:Ramallah Taiwan:Taipei""",
    "Africa": """
        Egypt:Cairo Morocco:Rabat Algeria:Algiers Tunisia:Tunis Libya:Tripoli Sudan:Khartoum South_Sudan:Juba
        Ethiopia:Addis_Ababa Eritrea:Asmara Djibouti:Djibouti_City Somalia:Mogadishu Kenya:Nairobi
        Uganda:Kampala Tanzania:Dodoma Rwanda:Kigali Burundi:Gitega Nigeria:Abuja Ghana:Accra
        Ivory_Coast:Yamoussoukro Senegal:Dakar Mali:Bamako Niger:Niamey Chad:N'Djamena
        Burkina_Faso:Ouagadougou Benin:Porto-Novo Togo:Lome Guinea:Conakry Guinea-Bissau:Bissau
        Sierra_Leone:Freetown Liberia:Monrovia Gambia:Banjul Cape_Verde:Praia Mauritania:Nouakchott
        Cameroon:Yaounde Gabon:Libreville Republic_of_the_Congo:Brazzaville
        Democratic_Republic_of_the_Congo:Kinshasa Central_African_Republic:Bangui Equatorial_Guinea:Malabo
        Sao_Tome_and_Principe:Sao_Tome Angola:Luanda Zambia:Lusaka Zimbabwe:Harare Malawi:Lilongwe
        Mozambique:Maputo Botswana:Gaborone Namibia:Windhoek South_Africa:Pretoria Lesotho:Maseru
        Eswatini:Mbabane Madagascar:Antananarivo Mauritius:Port_Louis Seychelles:Victoria Comoros:Moroni""",
    "North America": """
        United_States:Washington_D.C. Canada:Ottawa Mexico:Mexico_City Cuba:Havana Jamaica:Kingston
        Haiti:Port-au-Prince Dominican_Republic:Santo_Domingo Guatemala:Guatemala_City Honduras:Tegucigalpa
        El_Salvador:San_Salvador Nicaragua:Managua Costa_Rica:San_Jose Panama:Panama_City Belize:Belmopan
        Bahamas:Nassau Barbados:Bridgetown Trinidad_and_Tobago:Port_of_Spain Grenada:Saint_George's
        Dominica:Roseau Saint_Lucia:Castries Saint_Kitts_and_Nevis:Basseterre Antigua_and_Barbuda:Saint_John's
        Saint_Vincent_and_the_Grenadines:Kingstown""",
    "South America": """
        Brazil:Brasilia Argentina:Buenos_Aires Chile:Santiago Peru:Lima Colombia:Bogota Venezuela:Caracas
        Ecuador:Quito Bolivia:Sucre Paraguay:Asuncion Uruguay:Montevideo Guyana:Georgetown
        Suriname:Paramaribo""",
    "Oceania": """
        Australia:Canberra New_Zealand:Wellington Fiji:Suva Papua_New_Guinea:Port_Moresby Samoa:Apia
        Tonga:Nuku'alofa Vanuatu:Port_Vila Solomon_Islands:Honiara Kiribati:Tarawa Micronesia:Palikir
        Marshall_Islands:Majuro Palau:Ngerulmud Nauru:Yaren Tuvalu:Funafuti""",
}


def _read_countries() -> tuple[dict[str, str], dict[str, str]]:
    """The two tables below, from the text above; underscores stand for spaces."""
    capitals, continents = {}, {}
    for continent, text in _CAPITALS_BY_CONTINENT.items():
        for pair in text.split():
            country, capital = pair.replace("_", " ").split(":")
            capitals[country], continents[country] = capital, continent
    return capitals, continents


CAPITALS, CONTINENTS = _read_countries()
"""Country -> capital, country -> continent."""

WELL_KNOWN: Final = tuple(
    """France Germany Italy Spain Japan Portugal Greece Poland Austria Sweden Norway Egypt Canada Brazil China
    India Kenya Peru Chile Cuba Ireland Finland Denmark Hungary Russia Thailand Argentina Australia Morocco
    Turkey""".split()
)
"""Countries named first when any will do."""

ARTICLE_COUNTRIES: Final = frozenset(
    """Netherlands;United Kingdom;United States;Philippines;Bahamas;Maldives;Gambia;Seychelles;Comoros;
    United Arab Emirates;Czech Republic;Dominican Republic;Central African Republic;Republic of the Congo;
    Democratic Republic of the Congo;Solomon Islands;Marshall Islands""".replace("\n    ", "").split(";")
)
"""Countries that take "the" in a sentence."""


def _items(text: str) -> tuple[str, ...]:
    return tuple(item.replace("_", " ") for item in text.split())


CATEGORIES: Final[dict[str, tuple[str, ...]]] = {
    "colors": _items(
        "red blue green yellow orange purple pink black white brown gray gold silver violet turquoise"
    ),
    "animals": _items(
        "dog cat horse lion tiger elephant bear rabbit monkey cow sheep wolf fox giraffe zebra"
    ),
    "fruits": _items("apple banana orange grape pear peach cherry mango kiwi lemon plum melon pineapple fig"),
    "vegetables": _items(
        "carrot potato tomato onion cabbage spinach broccoli pea pepper cucumber bean celery"
    ),
    "countries": WELL_KNOWN,
    "cities": _items(
        "Paris London Rome Berlin Madrid Tokyo Vienna Lisbon Athens Oslo Dublin Cairo Prague Moscow"
    ),
    "birds": _items("eagle owl sparrow robin parrot crow swan duck pigeon hawk penguin goose stork"),
    "sports": _items(
        "football tennis basketball hockey golf swimming baseball rugby boxing cricket skiing judo"
    ),
    "languages": _items(
        "English Spanish French German Italian Chinese Japanese Russian Arabic Hindi Dutch Greek"
    ),
    "drinks": _items("water tea coffee milk juice lemonade soda wine beer cocoa cider"),
    "flowers": _items("rose tulip daisy lily sunflower orchid violet poppy iris daffodil lavender"),
    "instruments": _items("piano guitar violin drums flute trumpet cello harp saxophone clarinet banjo"),
    "jobs": _items("teacher doctor nurse engineer cook farmer pilot lawyer baker artist driver writer"),
    "tools": _items("hammer saw drill wrench screwdriver pliers knife axe shovel ladder chisel"),
    "metals": _items("iron gold silver copper tin zinc lead nickel aluminum platinum titanium"),
    "trees": _items("oak pine maple birch willow cedar ash elm palm beech fir"),
    "clothes": _items("shirt coat hat shoes socks dress skirt scarf jacket gloves belt"),
    "numbers": _items("1 2 3 4 5 6 7 8 9 10"),
    "days": _items("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "months": _items("January February March April May June July August September October November December"),
    "planets": _items("Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune"),
    "letters": _items("A B C D E F G H I J K L"),
}
"""Plural name -> its members, the usual ones first."""

ORDERED: Final = frozenset({"numbers", "days", "months", "planets", "letters"})
"""Categories that are listed in their own order."""

CATEGORY_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "colors": ("colors", "colours"),
    "days": ("days of the week", "weekdays", "days"),
    "months": ("months", "months of the year"),
    "letters": ("letters", "letters of the alphabet"),
    "instruments": ("instruments", "musical instruments"),
    "jobs": ("jobs", "professions"),
    "planets": ("planets", "planets of the solar system"),
    "cities": ("cities", "capital cities"),
}
"""What else people call a category; one not named here goes by its own name."""

SINGULAR: Final[dict[str, str]] = {
    "countries": "country",
    "cities": "city",
    "clothes": "piece of clothing",
    "fruits": "fruit",
}
"""Irregular singulars; the others lose their "s"."""  # fmt: skip

NAMES: Final = tuple(
    """Ana Tom Maria John Lucy Peter Sarah David Emma Paul Laura James Anna Mark Julia Daniel Sophie Alex Nina
    Oscar Clara Hugo Alice Bob Carol Eve Frank Grace Henry Irene Jack Karen Leo Mia Noah Olivia Quinn Rosa Sam
    Tina Uma Victor Wendy Xavier Yara Zoe Ali Fatima Omar Leila Chen Wei Yuki Hiro Priya Raj Ivan Olga Boris
    Elena Marco Luca Giulia Pierre Marie Hans Greta Lars Ingrid Jan Eva Pedro Carmen Jose Lucia Diego Nadia
    Amir Sara Ben Max Lily Ella Adam Kate Will Rose Martin Helen George Diana Philip Monica Steven Rachel
    Kevin Megan Brian Amy Eric Linda Felix Bella Aaron Ruth Simon Tara Jonas Vera Otto Ida Kofi Amara Chidi
    Zuri Mateo Valentina Santiago Camila""".split()
)
HELD_OUT_NAMES: Final = tuple(
    """Bruno Fiona Gustav Heidi Igor Jasmin Kurt Lena Miriam Nolan Petra Ralph Sonja Theo Ursula Viktor Yasmin
    Damian Estelle Renata Cyril Odette Tobias Marlene""".split()
)
"""Names that no training conversation contains."""

UNITS: Final[tuple[tuple[str, str, str, str, int], ...]] = (
    ("kilometer", "kilometers", "meter", "meters", 1000),
    ("meter", "meters", "centimeter", "centimeters", 100),
    ("centimeter", "centimeters", "millimeter", "millimeters", 10),
    ("meter", "meters", "millimeter", "millimeters", 1000),
    ("kilogram", "kilograms", "gram", "grams", 1000),
    ("gram", "grams", "milligram", "milligrams", 1000),
    ("ton", "tons", "kilogram", "kilograms", 1000),
    ("liter", "liters", "milliliter", "milliliters", 1000),
    ("hour", "hours", "minute", "minutes", 60),
    ("minute", "minutes", "second", "seconds", 60),
    ("day", "days", "hour", "hours", 24),
    ("week", "weeks", "day", "days", 7),
    ("year", "years", "month", "months", 12),
    ("foot", "feet", "inch", "inches", 12),
    ("yard", "yards", "foot", "feet", 3),
    ("dollar", "dollars", "cent", "cents", 100),
    ("euro", "euros", "cent", "cents", 100),
    ("dozen", "dozens", "egg", "eggs", 12),
)
"""Larger unit (one, many), smaller unit (one, many), how many of the smaller make one of the larger."""

NUMBER_WORDS: Final = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()

COMMON_WORDS: Final = tuple(
    """hello world house tree river mountain window garden table chair bread butter cheese sugar water fire
    stone paper pencil school book music dance winter summer spring autumn morning evening night light dark
    happy sad quick brown jumps over lazy small large green yellow cloud rain snow storm wind ocean beach
    island forest desert city village street bridge castle tower door wall roof floor kitchen bottle glass
    spoon plate knife basket blanket pillow candle mirror clock watch phone camera screen keyboard computer
    program server python network engine motor wheel train plane ship boat truck bicycle rocket planet star
    moon sun earth science history language letter number story poem song picture painting color shape circle
    square triangle line point center corner edge top bottom left right north south east west friend family
    mother father sister brother child baby teacher student doctor king queen prince princess dragon wizard
    magic secret treasure map key lock gold silver copper iron diamond ring crown sword shield arrow horse
    rabbit turtle spider butterfly chicken monkey kitten puppy dolphin whale shark lizard frog snake apple
    banana cherry lemon orange peach strawberry tomato potato carrot onion pepper pumpkin chocolate cookie
    cake coffee sandwich pizza pasta soup salad dinner breakfast lunch market shop money price coin ticket
    travel journey adventure holiday weekend minute second hour today tomorrow yesterday always never
    sometimes maybe really little great good better best open close start finish begin end run walk jump swim
    fly sleep dream think learn read write speak listen watch play work build break make take give bring carry
    find lose win love hate hope fear trust help thanks please sorry welcome goodbye question answer problem
    solution example test simple difficult easy hard strong weak fast slow warm cold hot cool wet dry clean
    dirty young old new first last next early late banana elephant giraffe computer umbrella telephone
    hospital library mountain rainbow sunshine football guitar violin thunder lightning feather blossom meadow
    valley harbor lantern compass anchor marble velvet cotton wooden golden silent gentle brave clever honest
    famous foreign modern ancient perfect special""".split()
)
"""Words that people try things with: reversing, spelling, repeating."""
