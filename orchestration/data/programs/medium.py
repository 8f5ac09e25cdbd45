"""Difficulty 2: a loop, or a few cases."""

from __future__ import annotations

from orchestration.data.programs.program import read_programs

MEDIUM = read_programs(
    2,
    r"""
sign(x) | 1 if the number x is positive, -1 if it is negative, 0 if it is zero
    if x > 0:
        return 1
    if x < 0:
        return -1
    return 0
- return 1 if x >= 0 else -1
~ x < 0 => x < -1
> 5 -> 1; -1 -> -1; 0 -> 0; -9 -> -1; 2 -> 1

grade(points) | "A" from 90 points on, "B" from 80 on, "C" from 70 on, else "F"
    if points >= 90:
        return "A"
    if points >= 80:
        return "B"
    if points >= 70:
        return "C"
    return "F"
~ >= 90 => > 90
~ "C" => "D"
> 95 -> "A"; 90 -> "A"; 85 -> "B"; 70 -> "C"; 69 -> "F"; 0 -> "F"

fizz(n) | "FizzBuzz" if n is divisible by 15, "Fizz" if by 3, "Buzz" if by 5, else n as a text
    if n % 15 == 0:
        return "FizzBuzz"
    if n % 3 == 0:
        return "Fizz"
    if n % 5 == 0:
        return "Buzz"
    return str(n)
~ str(n) => n
~ n % 15 => n % 30
> 15 -> "FizzBuzz"; 9 -> "Fizz"; 10 -> "Buzz"; 7 -> "7"; 45 -> "FizzBuzz"; 1 -> "1"

leap(year) | True if year is a leap year: divisible by 4, but not by 100 unless by 400; else False
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
- return year % 4 == 0
- return year % 4 == 0 and year % 100 != 0
> 2024 -> True; 2023 -> False; 1900 -> False; 2000 -> True; 2100 -> False

digit_sum(n) | the sum of the decimal digits of the whole number n, which is not negative
    return sum(int(digit) for digit in str(n))
- return len(str(n))
- return n % 9
> 123 -> 6; 0 -> 0; 9999 -> 36; 1001 -> 2; 50 -> 5

factorial(n) | the product of the whole numbers from 1 to n, and 1 for n = 0
    result = 1
    for k in range(2, n + 1):
        result *= k
    return result
~ n + 1 => n
- return sum(range(1, n + 1))
> 0 -> 1; 1 -> 1; 5 -> 120; 3 -> 6; 10 -> 3628800

count_vowels(text) | how many characters of text are vowels (a, e, i, o, u), small or capital
    return sum(char in "aeiou" for char in text.lower())
~ text.lower() => text
~ aeiou => aeio
> "hello" -> 2; "AUTUMN" -> 3; "" -> 0; "rhythm" -> 0; "Uu" -> 2

is_palindrome(text) | True if text reads the same backwards, case and blanks aside, else False
    kept = text.replace(" ", "").lower()
    return kept == kept[::-1]
- return text == text[::-1]
~ .lower() => .strip()
> "level" -> True; "Never odd or even" -> True; "ab" -> False; "" -> True; "Anna" -> True

evens(numbers) | a list of the even numbers of the list numbers, in their order
    return [n for n in numbers if n % 2 == 0]
- return [n for n in numbers if n % 2]
- return numbers[::2]
> [1, 2, 3, 4] -> [2, 4]; [] -> []; [5, 7] -> []; [0, -2, 9, 9] -> [0, -2]

positive_sum(numbers) | the sum of the numbers above zero in the list numbers
    return sum(n for n in numbers if n > 0)
- return sum(numbers)
- return len([n for n in numbers if n > 0])
> [1, -2, 3] -> 4; [] -> 0; [-1, -5] -> 0; [10, 0, 5] -> 15

second_largest(numbers) | the second largest of the different numbers in the list numbers
    return sorted(set(numbers))[-2]
- return sorted(numbers)[-2]
- return sorted(set(numbers))[1]
> [1, 2, 3] -> 2; [5, 5, 4] -> 4; [10, 9, 8, 7] -> 9; [-1, -2] -> -2

unique(items) | the entries of the list items without repetitions, each where it first stands
    seen = []
    for item in items:
        if item not in seen:
            seen.append(item)
    return seen
- return sorted(set(items))
~ not in => in
> [3, 1, 3, 2, 1] -> [3, 1, 2]; [] -> []; ["b", "a", "b"] -> ["b", "a"]; [1, 1, 1] -> [1]

longest_word(text) | the longest of the words in text, and of several the first
    return max(text.split(), key=len)
- return max(text.split())
- return sorted(text.split(), key=len)[0]
> "a bcd ef" -> "bcd"; "one two" -> "one"; "tiny enormous big" -> "enormous"; "z yy" -> "yy"

title_case(text) | the words of text with one blank between, each with a capital and then small letters
    return " ".join(word.capitalize() for word in text.split())
- return text.upper()
- return text.capitalize()
> "hello world" -> "Hello World"; "a  b" -> "A B"; "mIXED cASE" -> "Mixed Case"; "" -> ""

dot(a, b) | the sum of the products of the entries of the lists a and b at the same places
    return sum(x * y for x, y in zip(a, b))
~ x * y => x + y
- return sum(a) * sum(b)
> [1, 2], [3, 4] -> 11; [], [] -> 0; [2], [-5] -> -10; [1, 0, 2], [7, 8, 9] -> 25

running_total(numbers) | a list of the sums of the first 1, 2, 3 and so on of the list numbers
    result, total = [], 0
    for n in numbers:
        total += n
        result.append(total)
    return result
~ append(total) => append(n)
~ total += n => total = n + 1
> [1, 2, 3] -> [1, 3, 6]; [] -> []; [5] -> [5]; [2, -2, 4] -> [2, 0, 4]

clamp_all(numbers, low, high) | a list of numbers, those below low raised to it, those above high lowered to it
    return [min(max(n, low), high) for n in numbers]
- return [n for n in numbers if low <= n <= high]
~ min(max(n, low), high) => max(n, low)
> [1, 5, 9], 2, 8 -> [2, 5, 8]; [], 0, 1 -> []; [3], 3, 3 -> [3]; [-5, 50], 0, 10 -> [0, 10]

gcd(a, b) | the greatest common divisor of the positive whole numbers a and b
    while b:
        a, b = b, a % b
    return a
- return min(a, b)
~ return a => return b
> 12, 18 -> 6; 7, 5 -> 1; 9, 3 -> 3; 100, 75 -> 25

is_prime(n) | True if the whole number n is prime, else False
    if n < 2:
        return False
    return all(n % k for k in range(2, int(n ** 0.5) + 1))
- return n % 2 == 1
~ + 1) => - 1)
> 2 -> True; 1 -> False; 9 -> False; 13 -> True; 25 -> False; 0 -> False; 97 -> True

count_letters(text) | a dictionary from each character of text to how often it occurs
    counts = {}
    for char in text:
        counts[char] = counts.get(char, 0) + 1
    return counts
~ counts.get(char, 0) + 1 => 1
~ char, 0 => char, 1
> "aab" -> {"a": 2, "b": 1}; "" -> {}; "x" -> {"x": 1}; "abca" -> {"a": 2, "b": 1, "c": 1}

swap_keys(pairs) | the dictionary pairs with its keys as values and its values as keys
    return {value: key for key, value in pairs.items()}
- return pairs
~ value: key => value: value
> {"a": "b"} -> {"b": "a"}; {} -> {}; {"x": "y", "u": "v"} -> {"y": "x", "v": "u"}

every_other(text) | the characters of text at the places 0, 2, 4 and so on
    return text[::2]
- return text[1::2]
- return text[:2]
> "abcdef" -> "ace"; "a" -> "a"; "" -> ""; "hello" -> "hlo"

powers(base, n) | a list of base to the powers 0, 1, 2 up to n
    return [base ** k for k in range(n + 1)]
~ n + 1 => n
~ base ** k => base * k
> 2, 3 -> [1, 2, 4, 8]; 3, 0 -> [1]; 10, 2 -> [1, 10, 100]; -1, 3 -> [1, -1, 1, -1]

replace_negatives(numbers) | the list numbers with 0 in the place of each negative one
    return [max(n, 0) for n in numbers]
- return [n for n in numbers if n >= 0]
~ max(n, 0) => abs(n)
> [1, -2, 3] -> [1, 0, 3]; [] -> []; [-1, -1] -> [0, 0]; [0, 5] -> [0, 5]

common(a, b) | a sorted list of the different entries that the lists a and b share
    return sorted(set(a) & set(b))
~ & => |
- return [x for x in a if x in b]
> [1, 2, 3], [2, 3, 4] -> [2, 3]; [], [1] -> []; [5, 5], [5] -> [5]; [3, 1], [1, 3] -> [1, 3]

mean(numbers) | the mean of the list numbers, and 0 if it is empty
    return sum(numbers) / len(numbers) if numbers else 0
~ len(numbers) => 2
~ else 0 => else None
> [1, 2, 3] -> 2.0; [] -> 0; [5] -> 5.0; [1, 2, 3, 4] -> 2.5

swap_case_of(text) | text with its small letters as capitals and its capitals as small letters
    return text.swapcase()
- return text.upper()
- return text.lower()
> "aBc" -> "AbC"; "" -> ""; "HELLO" -> "hello"; "x1Y" -> "X1y"

steps_to_one(n) | how many steps it takes from n to 1 if an even n is halved and an odd one becomes 3n + 1
    steps = 0
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
    return steps
~ steps = 0 => steps = 1
- return n.bit_length() - 1
> 1 -> 0; 2 -> 1; 3 -> 7; 6 -> 8; 16 -> 4
""",
)
