"""Eight worked examples that belong to no data set, for `data.examples=fixed`: question, working, answer."""

from __future__ import annotations

FIXED_EXAMPLES: tuple[tuple[str, str, str], ...] = (
    (
        "A bakery bakes 7 trays of rolls with 12 rolls on each. By noon 59 rolls are sold. How many rolls are left?",
        "There are 7 * 12 = 84 rolls. After the sale 84 - 59 = 25 rolls are left.",
        "25",
    ),
    (
        "Marta cycles 14 km to work and the same way back, on 5 days a week. How many km does she cycle in 3 weeks?",
        "A day has 2 * 14 = 28 km. A week has 5 * 28 = 140 km. Three weeks have 3 * 140 = 420 km.",
        "420",
    ),
    (
        "A tank holds 360 litres. It is one quarter full. How many litres still fit in?",
        "One quarter of 360 is 360 / 4 = 90 litres. So 360 - 90 = 270 litres still fit in.",
        "270",
    ),
    (
        "Tim has 18 marbles, which is 6 more than half of what Lena has. How many marbles does Lena have?",
        "Half of Lena's marbles is 18 - 6 = 12. So Lena has 2 * 12 = 24 marbles.",
        "24",
    ),
    (
        "A jacket costs $80. In the sale it is 15% cheaper. A voucher takes another $10 off. What is paid for it?",
        "The reduction is 80 * 15 / 100 = 12 dollars. In the sale it costs 80 - 12 = 68 dollars. With the voucher it "
        "is 68 - 10 = 58 dollars.",
        "58",
    ),
    (
        "Three friends share a rent of $1,350 equally. Each also pays $45 for heating. How much does each pay?",
        "The rent is 1350 / 3 = 450 dollars each. With heating it is 450 + 45 = 495 dollars.",
        "495",
    ),
    (
        "A film begins at 19:40 and lasts 135 minutes. How many minutes before 22:00 does it end?",
        "From 19:40 to 22:00 it is 140 minutes. So it ends 140 - 135 = 5 minutes before.",
        "5",
    ),
    (
        "In the morning it was 4 degrees. It fell by 3 degrees an hour for 4 hours. What was the temperature then?",
        "It fell by 3 * 4 = 12 degrees. Then it was 4 - 12 = -8 degrees.",
        "-8",
    ),
)
