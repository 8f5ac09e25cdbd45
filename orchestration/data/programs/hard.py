"""Difficulty 3: an algorithm."""

from __future__ import annotations

from orchestration.data.programs.program import read_programs

HARD = read_programs(
    3,
    r"""
fibonacci(n) | the n-th Fibonacci number, where the 0th is 0 and the 1st is 1
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a
~ return a => return b
~ a + b => a + a
> 0 -> 0; 1 -> 1; 7 -> 13; 10 -> 55; 2 -> 1

primes_below(n) | a list of the prime numbers smaller than n
    return [k for k in range(2, n) if all(k % d for d in range(2, k))]
~ range(2, n) => range(2, n + 1)
~ range(2, k) => range(3, k)
> 10 -> [2, 3, 5, 7]; 2 -> []; 3 -> [2]; 20 -> [2, 3, 5, 7, 11, 13, 17, 19]

prime_factors(n) | a list of the prime factors of n, which is at least 2, from small to large, repeated ones repeated
    factors, d = [], 2
    while n > 1:
        while n % d == 0:
            factors.append(d)
            n //= d
        d += 1
    return factors
- return [d for d in range(2, n + 1) if n % d == 0]
~ n //= d => n = 1
> 12 -> [2, 2, 3]; 7 -> [7]; 30 -> [2, 3, 5]; 8 -> [2, 2, 2]

to_binary(n) | the whole number n, which is not negative, in binary digits as a text, "0" for 0
    digits = ""
    while n:
        digits = str(n % 2) + digits
        n //= 2
    return digits or "0"
~ or "0" => or ""
~ str(n % 2) + digits => digits + str(n % 2)
> 5 -> "101"; 0 -> "0"; 1 -> "1"; 10 -> "1010"; 255 -> "11111111"

roman(n) | the number n, from 1 to 3999, in Roman numerals
    table = [(1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL")]
    result = ""
    for value, letters in table + [(10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")]:
        while n >= value:
            result += letters
            n -= value
    return result
~ (4, "IV"),  =>
~ n >= value => n > value
> 4 -> "IV"; 9 -> "IX"; 58 -> "LVIII"; 1994 -> "MCMXCIV"; 3 -> "III"; 2024 -> "MMXXIV"

balanced(text) | True if the brackets (), [] and {} in text are closed in the right order, else False
    open_ones, pairs = [], {")": "(", "]": "[", "}": "{"}
    for char in text:
        if char in "([{":
            open_ones.append(char)
        elif char in pairs and (not open_ones or open_ones.pop() != pairs[char]):
            return False
    return not open_ones
- return text.count("(") == text.count(")")
~ return not open_ones => return True
> "()" -> True; "([)]" -> False; "" -> True; "(a[b]{c})" -> True; "(" -> False; ")(" -> False

anagrams(a, b) | True if the texts a and b consist of the same letters as often, case and blanks aside, else False
    first, second = (sorted(text.replace(" ", "").lower()) for text in (a, b))
    return first == second
~ sorted(text.replace(" ", "").lower()) => set(text.lower())
~ .lower() => .strip()
> "listen", "silent" -> True; "aab", "ab" -> False; "Dormitory", "dirty room" -> True; "a", "b" -> False; "", "" -> True

caesar(text, shift) | text with each small letter moved by shift places in the alphabet, after z comes a
    moved = ""
    for char in text:
        if "a" <= char <= "z":
            char = chr((ord(char) - ord("a") + shift) % 26 + ord("a"))
        moved += char
    return moved
~  % 26 =>
~ + shift => - shift
> "abc", 1 -> "bcd"; "xyz", 3 -> "abc"; "Hi you", 2 -> "Hk aqw"; "", 5 -> ""; "b", -1 -> "a"

run_lengths(text) | a list of (character, length) for each run of equal characters in text
    runs = []
    for char in text:
        if runs and runs[-1][0] == char:
            runs[-1] = (char, runs[-1][1] + 1)
        else:
            runs.append((char, 1))
    return runs
- return [(char, text.count(char)) for char in sorted(set(text))]
~ + 1 => + 2
> "aab" -> [("a", 2), ("b", 1)]; "" -> []; "abba" -> [("a", 1), ("b", 2), ("a", 1)]; "zzz" -> [("z", 3)]

merge(a, b) | one sorted list of the entries of the two sorted lists a and b
    result, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        if a[i] <= b[j]:
            result.append(a[i])
            i += 1
        else:
            result.append(b[j])
            j += 1
    return result + a[i:] + b[j:]
- return a + b
~  + b[j:] =>
> [1, 3], [2, 4] -> [1, 2, 3, 4]; [], [1] -> [1]; [5], [] -> [5]; [1, 1], [1, 2] -> [1, 1, 1, 2]

find(numbers, wanted) | the place of wanted in the sorted list numbers by halving, or -1 if it is not there
    low, high = 0, len(numbers) - 1
    while low <= high:
        middle = (low + high) // 2
        if numbers[middle] == wanted:
            return middle
        if numbers[middle] < wanted:
            low = middle + 1
        else:
            high = middle - 1
    return -1
~ low <= high => low < high
~ return -1 => return None
> [1, 3, 5, 7], 5 -> 2; [1, 3, 5, 7], 1 -> 0; [], 4 -> -1; [2, 4], 3 -> -1; [8], 8 -> 0; [1, 3, 5, 7], 7 -> 3

flatten(items) | one list of all entries of items, where a list in it, at any depth, is replaced by its own entries
    flat = []
    for item in items:
        flat += flatten(item) if isinstance(item, list) else [item]
    return flat
~ flatten(item) => item
~ else [item] => else []
> [1, [2, 3]] -> [1, 2, 3]; [] -> []; [[1, [2, [3]]], 4] -> [1, 2, 3, 4]; [[], [[]]] -> []

transpose(rows) | the table rows, a list of lists of equal length, with its rows as columns
    return [list(column) for column in zip(*rows)]
- return rows[::-1]
- return [row[::-1] for row in rows]
> [[1, 2], [3, 4]] -> [[1, 3], [2, 4]]; [[1, 2, 3]] -> [[1], [2], [3]]; [[5]] -> [[5]]

spiral(rows) | the entries of the table rows in a spiral: the first row, down the right side, back, and so inwards
    result = []
    while rows:
        result += rows[0]
        rows = [list(column) for column in zip(*rows[1:])][::-1]
    return result
- return [entry for row in rows for entry in row]
~ [::-1] => [:]
> [[1, 2], [3, 4]] -> [1, 2, 4, 3]; [[1, 2, 3], [4, 5, 6], [7, 8, 9]] -> [1, 2, 3, 6, 9, 8, 7, 4, 5]; [[7]] -> [7]

pascal(n) | the n-th row of Pascal's triangle as a list, where the 0th is [1]
    row = [1]
    for _ in range(n):
        row = [1] + [a + b for a, b in zip(row, row[1:])] + [1]
    return row
~ a + b => a * b
~ range(n) => range(n - 1)
> 0 -> [1]; 1 -> [1, 1]; 4 -> [1, 4, 6, 4, 1]; 5 -> [1, 5, 10, 10, 5, 1]

largest_run(numbers) | the largest sum of one or more neighbouring entries of the list numbers
    best = here = numbers[0]
    for n in numbers[1:]:
        here = max(n, here + n)
        best = max(best, here)
    return best
- return sum(numbers)
~ max(n, here + n) => here + n
> [1, -2, 3, 4] -> 7; [-3, -1] -> -1; [5] -> 5; [2, -1, 2, -5, 4] -> 4; [-1, 4, -2, 5] -> 7

coins(amount, values) | the smallest number of coins of these values that make amount, or -1 if none do
    best = [0] + [None] * amount
    for total in range(1, amount + 1):
        ways = [best[total - v] for v in values if v <= total and best[total - v] is not None]
        best[total] = min(ways) + 1 if ways else None
    return -1 if best[amount] is None else best[amount]
~ min(ways) => max(ways)
~ return -1 if => return 0 if
> 6, [1, 3, 4] -> 2; 0, [5] -> 0; 3, [2] -> -1; 11, [1, 2, 5] -> 3; 7, [2, 4] -> -1

subsets_with_sum(numbers, total) | how many subsets of the list numbers, by places, have this sum; the empty one counts
    ways = {0: 1}
    for n in numbers:
        for value, count in list(ways.items()):
            ways[value + n] = ways.get(value + n, 0) + count
    return ways.get(total, 0)
~ list(ways.items()) => [(0, 1)]
~ {0: 1} => {}
> [1, 2, 3], 3 -> 2; [], 0 -> 1; [1, 1], 1 -> 2; [5], 4 -> 0; [1, 2, 3, 4], 5 -> 2

edit_distance(a, b) | how many insertions, deletions and replacements of single characters turn the text a into b
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]
- return abs(len(a) - len(b))
- return sum(x != y for x, y in zip(a, b)) + abs(len(a) - len(b))
> "kitten", "sitting" -> 3; "", "abc" -> 3; "same", "same" -> 0; "abc", "bc" -> 1; "ab", "ba" -> 2

common_prefix(words) | the longest text that all of the words, a list that is not empty, begin with
    prefix = words[0]
    for word in words[1:]:
        while not word.startswith(prefix):
            prefix = prefix[:-1]
    return prefix
- return words[0]
~ while not => if not
> ["flower", "flow", "flight"] -> "fl"; ["a"] -> "a"; ["ab", "cd"] -> ""; ["tree", "trees"] -> "tree"

longest_unique(text) | the length of the longest piece of text in which no character occurs twice
    best, start, last = 0, 0, {}
    for i, char in enumerate(text):
        if last.get(char, -1) >= start:
            start = last[char] + 1
        last[char] = i
        best = max(best, i - start + 1)
    return best
- return len(set(text))
~ last[char] + 1 => last[char]
> "abcabcbb" -> 3; "" -> 0; "bbbb" -> 1; "pwwkew" -> 3; "abba" -> 2; "dvdf" -> 3

group_by_first(words) | a dictionary from each first letter to a list of the words that begin with it, in their order
    groups = {}
    for word in words:
        groups.setdefault(word[0], []).append(word)
    return groups
- return {word[0]: [word] for word in words}
~ word[0] => word
> ["ant", "bee", "ape"] -> {"a": ["ant", "ape"], "b": ["bee"]}; [] -> {}; ["xy", "x"] -> {"x": ["xy", "x"]}

most_common(items) | the entry that occurs most often in the list items, and of several the smallest
    return min(set(items), key=lambda item: (-items.count(item), item))
~ -items.count(item) => items.count(item)
~ , item)) => , -item))
> [1, 2, 2, 3] -> 2; [5] -> 5; [3, 1, 3, 1] -> 1; [4, 4, 9] -> 4

calculate(text) | the value of text, whole numbers with + and - between them and blanks anywhere, such as "3 + 4 - 2"
    total, sign, number = 0, 1, ""
    for char in text.replace(" ", "") + "+":
        if char in "+-":
            total += sign * int(number)
            sign, number = (1 if char == "+" else -1), ""
        else:
            number += char
    return total
- return sum(int(word) for word in text.split() if word.isdigit())
~ else -1 => else 1
> "3 + 4 - 2" -> 5; "7" -> 7; "10-20" -> -10; "1+1+1" -> 3; "5 - 5 + 12" -> 12

matches(text, pattern) | True if all of text fits pattern, where ? is any character and * any number; else False
    if not pattern:
        return not text
    if pattern[0] == "*":
        return matches(text, pattern[1:]) or bool(text and matches(text[1:], pattern))
    return bool(text) and pattern[0] in ("?", text[0]) and matches(text[1:], pattern[1:])
- return text.startswith(pattern.rstrip("*"))
~ not text => True
> "abc", "a?c" -> True; "abc", "a*" -> True; "", "*" -> True; "ab", "a" -> False; "aXb", "a*b" -> True

next_day(year, month, day) | a list of year, month and day of the day after this date, with leap years
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    lengths = [31, 29 if leap else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    if day < lengths[month - 1]:
        return [year, month, day + 1]
    return [year, month + 1, 1] if month < 12 else [year + 1, 1, 1]
- return [year, month, day + 1]
~ 29 if leap else 28 => 28
> 2023, 2, 28 -> [2023, 3, 1]; 2024, 2, 28 -> [2024, 2, 29]; 2023, 12, 31 -> [2024, 1, 1]; 1900, 2, 28 -> [1900, 3, 1]

queens(n) | in how many ways n queens fit on an n by n board so that none attacks another
    def place(columns):
        row = len(columns)
        if row == n:
            return 1
        free = (c for c in range(n) if all(c != k and abs(c - k) != row - i for i, k in enumerate(columns)))
        return sum(place([*columns, c]) for c in free)
    return place([])
~ c != k and  =>
~  and abs(c - k) != row - i =>
> 1 -> 1; 2 -> 0; 4 -> 2; 5 -> 10; 6 -> 4

minutes_covered(spans) | how many minutes lie in at least one of the spans, a list of [start, end) in whole minutes
    covered, reached = 0, None
    for start, end in sorted(spans):
        if reached is not None and start < reached:
            start = reached
        if end > start:
            covered += end - start
            reached = end
    return covered
- return sum(end - start for start, end in spans)
- return max(end for _, end in spans) - min(start for start, _ in spans)
> [[0, 5], [3, 8]] -> 8; [[0, 2], [4, 6]] -> 4; [[1, 9], [2, 3]] -> 8; [[0, 1], [0, 1]] -> 1; [[5, 7], [0, 6]] -> 7
""",
)
