# Bodies of requests that ask for one model, and for no other: a regular expression of PCRE2, which leaves the model in $keys_named. What it does not match
# is refused; so are bodies that are too deep or too long for PCRE. (Which models are listed is asked of the name: nginx has 4096 bytes for an expression.)
#
# It reads JSON once, from its beginning to its end, and takes of JSON what every parser reads alike. A body is an object of
#
#   "model"                  exactly once, with a name of the `characters` that options take
#   "messages", "input"      with any value: they are the agent's words, and what its tools were called with
#   any other plain name     of ASCII, without escapes, so that no parser takes it for one of those; but not `models`, nor another by which providers are told
#                            further models (`forbidden`). Its value is `checked`: no member anywhere in it names a model
let
  characters = import ./model-name.nix;
  # `*+`, `++` and `?+` keep what they took: nothing is read twice. A backslash is written \x5c, as nginx takes two for one.
  string = ''"[^"\x5c]*+(?:\x5c.[^"\x5c]*+)*+"'';
  # Numbers, true, false and null.
  word = "[-+.0-9A-Za-z]++";
  list = open: item: close: ''${open}(?:${item}(?:,${item})*+)?+\s*+${close}'';
  value = kind: member: ''(?<keys_${kind}>\s*+(?:${string}|${word}|${list ''\['' "(?&keys_${kind})" ''\]''}|${list ''\{'' member ''\}''})\s*+)'';

  # One that is called after models has an object, as a parameter of a tool has in the tool's schema, and not a model or a list of them. Other escapes than these
  # could spell `model`.
  checkedMember = ''\s*+(?!"[^"]*(?i:model)[^"]*"\s*+:\s*+[^\s{])"[^"\x5c]*+(?:\x5c["\x5c/][^"\x5c]*+)*+"\s*+:(?&keys_checked)'';

  forbidden = "[^\"]*model|fallbacks?\"|route\"|preset\"|plugins\"";
  member = ''\s*+(?:"(?:messages|input)"\s*+:(?&keys_any)|"(?!(?i:${forbidden}))[!#-\x5b\x5d-~]*+"\s*+:(?&keys_checked))'';
  model = ''\s*+"model"\s*+:\s*+"(?<keys_named>${characters})"\s*+'';
in
# UTF: what is not UTF-8 does not match, as some decoders leave bytes out, or take some for a quote. LIMIT_DEPTH: about a thousand lists in lists, and not the gigabytes
# of memory that PCRE takes for millions.
"(*UTF)(*LIMIT_DEPTH=10000)(?s)(?(DEFINE)${value "any" ''\s*+${string}\s*+:(?&keys_any)''}${value "checked" checkedMember})"
+ ''^\s*+\{(?:${member},)*+${model}(?:,${member})*+\}\s*+$''
