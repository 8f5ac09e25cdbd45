"""Difficulty 1: one expression."""

from __future__ import annotations

from orchestration.data.programs.program import read_programs

EASY = read_programs(
    1,
    r"""
triple(x) | three times the number x
    return 3 * x
- return x + 3
- return x ** 3
> 3 -> 9; 0 -> 0; -2 -> -6; 10 -> 30

square_plus_one(x) | the square of the number x, plus one
    return x * x + 1
- return x * x
- return 2 * x + 1
> 0 -> 1; 3 -> 10; -4 -> 17; 10 -> 101

is_even(n) | True if the whole number n is even, else False
    return n % 2 == 0
- return n % 2 == 1
- return n > 0
> 4 -> True; 7 -> False; 0 -> True; -3 -> False; -8 -> True

last_digit(n) | the last decimal digit of the whole number n, which is not negative
    return n % 10
- return n // 10
- return int(str(n)[0])
> 47 -> 7; 120 -> 0; 5 -> 5; 9981 -> 1

minutes(hours, rest) | the minutes in so many hours and rest minutes
    return 60 * hours + rest
- return hours + rest
- return 60 * (hours + rest)
> 2, 5 -> 125; 0, 59 -> 59; 1, 0 -> 60; 24, 1 -> 1441

average(a, b) | the mean of the two numbers a and b
    return (a + b) / 2
- return a + b / 2
- return (a + b) // 2
> 2, 4 -> 3.0; 1, 2 -> 1.5; -3, 3 -> 0.0; 5, 10 -> 7.5

larger(a, b) | the larger of the two numbers a and b
    return max(a, b)
- return min(a, b)
- return a
> 2, 5 -> 5; 9, 1 -> 9; -3, -7 -> -3; 4, 4 -> 4

distance(a, b) | how far apart the numbers a and b are on the number line
    return abs(a - b)
- return a - b
- return abs(a + b)
> 3, 8 -> 5; 8, 3 -> 5; -2, 4 -> 6; 7, 7 -> 0

greeting(name) | the text "Hello, " followed by name and an exclamation mark
    return f"Hello, {name}!"
- return "Hello, name!"
- return f"Hello, {name}"
> "Ada" -> "Hello, Ada!"; "Bo" -> "Hello, Bo!"; "" -> "Hello, !"

shout(text) | text in capital letters
    return text.upper()
- return text.lower()
- return text.capitalize()
> "abc" -> "ABC"; "Hi you" -> "HI YOU"; "X1y" -> "X1Y"; "" -> ""

backwards(text) | text from its last character to its first
    return text[::-1]
- return text
- return text[::-2]
> "abc" -> "cba"; "Level" -> "leveL"; "" -> ""; "12 3" -> "3 21"

first_letter(word) | the first character of word, which is not empty
    return word[0]
- return word[-1]
- return word[1:]
> "cat" -> "c"; "x" -> "x"; "Zoo" -> "Z"; "9 lives" -> "9"

length_of_both(a, b) | the number of characters in the texts a and b together
    return len(a) + len(b)
- return len(a) * len(b)
- return len(a)
> "ab", "c" -> 3; "", "" -> 0; "four", "five!" -> 9; "", "x" -> 1

word_count(text) | the number of words in text, which are separated by blanks
    return len(text.split())
- return text.count(" ")
- return len(text)
> "one two" -> 2; "  spaced   out  " -> 2; "" -> 0; "a b c d" -> 4

total(numbers) | the sum of the list numbers
    return sum(numbers)
- return len(numbers)
- return max(numbers)
> [1, 2, 3] -> 6; [] -> 0; [-5, 5] -> 0; [10, 20, 3] -> 33

without_last(items) | the list items without its last entry
    return items[:-1]
- return items[1:]
- return items[-1]
> [1, 2, 3] -> [1, 2]; ["a"] -> []; [4, 4, 5, 6] -> [4, 4, 5]

sorted_down(numbers) | the list numbers, sorted from large to small
    return sorted(numbers, reverse=True)
- return sorted(numbers)
- return numbers[::-1]
> [1, 3, 2] -> [3, 2, 1]; [] -> []; [5, 5, 9] -> [9, 5, 5]; [-1, 0, -2] -> [0, -1, -2]

spread(numbers) | the largest of the list numbers minus the smallest
    return max(numbers) - min(numbers)
- return max(numbers)
- return numbers[-1] - numbers[0]
> [1, 5, 3] -> 4; [7] -> 0; [9, 2, 4] -> 7; [-3, 3, 0] -> 6

contains(items, wanted) | True if wanted is an entry of the list items, else False
    return wanted in items
- return items[0] == wanted
- return len(items) > 0
> [1, 2, 3], 2 -> True; [1, 2, 3], 5 -> False; [], 1 -> False; ["a", "b"], "b" -> True

fahrenheit(celsius) | the temperature celsius in degrees Fahrenheit, 9/5 of it plus 32
    return celsius * 9 / 5 + 32
- return celsius + 32
- return (celsius + 32) * 9 / 5
> 0 -> 32.0; 100 -> 212.0; -40 -> -40.0; 10 -> 50.0

area(width, height) | the area of a rectangle of this width and height
    return width * height
- return 2 * (width + height)
- return width + height
> 2, 3 -> 6; 5, 5 -> 25; 0, 9 -> 0; 7, 4 -> 28

is_adult(age) | True if age is 18 or more, else False
    return age >= 18
- return age > 18
- return age >= 21
> 18 -> True; 17 -> False; 40 -> True; 19 -> True; 0 -> False

half_price(price) | half of price, rounded down to a whole number
    return price // 2
- return price / 2
- return price - 2
> 10 -> 5; 7 -> 3; 1 -> 0; 100 -> 50

repeat(text, n) | text n times in a row, without anything between
    return text * n
- return text + str(n)
- return " ".join([text] * n)
> "ab", 3 -> "ababab"; "x", 0 -> ""; "no", 1 -> "no"; "-", 5 -> "-----"

initials(first, last) | the first characters of first and last, each followed by a dot
    return f"{first[0]}.{last[0]}."
- return first[0] + last[0]
- return f"{last[0]}.{first[0]}."
> "Ada", "Lovelace" -> "A.L."; "grace", "hopper" -> "g.h."; "X", "Y" -> "X.Y."

between(x, low, high) | True if x is at least low and at most high, else False
    return low <= x <= high
- return low < x < high
- return x <= high
> 3, 1, 5 -> True; 1, 1, 5 -> True; 5, 1, 5 -> True; 0, 1, 5 -> False; 6, 1, 5 -> False

both_ends(items) | a list of the first and the last entry of the list items, which is not empty
    return [items[0], items[-1]]
- return items[:2]
- return [items[0], items[0]]
> [1, 2, 3] -> [1, 3]; [8] -> [8, 8]; ["a", "b"] -> ["a", "b"]; [5, 0, 0, 9] -> [5, 9]

seconds(text) | the seconds in a text such as "12:34", minutes and seconds
    return 60 * int(text.split(":")[0]) + int(text.split(":")[1])
- return int(text.split(":")[0]) + int(text.split(":")[1])
- return 60 * int(text.split(":")[0])
> "12:34" -> 754; "0:05" -> 5; "1:00" -> 60; "10:10" -> 610
""",
)
