# Words of a command line as systemd reads them: `%` and `$` stand for themselves, and quotes where there must be some.
{ lib }:
let
  plain = word: builtins.match "[A-Za-z0-9_./:=@,+-]+" word != null;
  quoted = word: lib.replaceStrings [ "%" "$" ] [ "%%" "$$" ] (builtins.toJSON word);
in
words: lib.concatMapStringsSep " " (word: if plain word then word else quoted word) words
