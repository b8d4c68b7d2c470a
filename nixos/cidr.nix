# CIDR blocks and IP addresses, parsed as the policy file's parser does (opencode-egress/src/policy/mod.rs): what is taken here
# is taken there. An address is a list of 16-bit groups: two for IPv4, eight for IPv6.
{ lib }:
let
  inherit (lib)
    concatMap
    concatMapStringsSep
    concatStringsSep
    elem
    elemAt
    genList
    imap0
    last
    length
    splitString
    sublist
    ;

  zeros = genList (_: 0);
  power2 = bits: lib.foldl' (product: _: product * 2) 1 (lib.range 1 bits);
  number = text: lib.toIntBase10 text;

  # Decimal numbers below 256 without leading zeros, which some read as octal.
  v4 =
    text:
    let
      parts = splitString "." text;
      good = part: builtins.match "0|[1-9][0-9]{0,2}" part != null && number part < 256;
      octet = index: number (elemAt parts index);
    in
    if length parts == 4 && lib.all good parts then
      [
        (octet 0 * 256 + octet 1)
        (octet 2 * 256 + octet 3)
      ]
    else
      null;

  # The groups of one side of `::`, or null. Its end may be written as an IPv4 address.
  side =
    { text, isEnd }:
    let
      parts = splitString ":" text;
      group =
        index: part:
        if builtins.match "[0-9a-fA-F]{1,4}" part != null then
          [ (fromTOML "n=0x${part}").n ]
        else if isEnd && index == length parts - 1 then
          v4 part
        else
          null;
      groups = imap0 group parts;
    in
    if text == "" then
      [ ]
    else if elem null groups then
      null
    else
      concatMap (group: group) groups;

  v6 =
    text:
    let
      halves = splitString "::" text;
      whole = length halves == 1;
      left = side {
        text = lib.head halves;
        isEnd = whole;
      };
      right = side {
        text = last halves;
        isEnd = true;
      };
      missing = 8 - length left - length right;
    in
    if !lib.hasInfix ":" text || length halves > 2 || left == null || right == null then
      null
    else if whole then
      (if length left == 8 then left else null)
    else if missing < 1 then
      null
    else
      left ++ zeros missing ++ right;

  address = text: if lib.hasInfix ":" text then v6 text else v4 text;

  # The groups without the bits behind the prefix.
  truncate =
    groups: prefix:
    imap0 (
      index: group:
      let
        unit = power2 (16 - lib.max 0 (lib.min 16 (prefix - 16 * index)));
      in
      group / unit * unit
    ) groups;

  isV4 = groups: length groups == 2;

  showV4 =
    groups:
    concatMapStringsSep "." (group: "${toString (group / 256)}.${toString (lib.mod group 256)}") groups;

  hex = group: lib.toLower (lib.toHexString group);

  # Zeros are shortened at the end only, where networks have them.
  showV6 =
    groups:
    let
      used = lib.foldl' (most: index: if elemAt groups index == 0 then most else index + 1) 0 (
        lib.range 0 7
      );
      shown = concatStringsSep ":" (map hex (sublist 0 used groups));
    in
    if used > 6 then concatStringsSep ":" (map hex groups) else "${shown}::";

  show = groups: if isV4 groups then showV4 groups else showV6 groups;

  # An IPv4-mapped address is its IPv4 address.
  isMapped = groups: !isV4 groups && sublist 0 6 groups == zeros 5 ++ [ 65535 ];
  unmap = groups: if isMapped groups then sublist 6 2 groups else groups;

  isNull = groups: groups == zeros (length groups);
in
rec {
  # Whether a network has an address in it. Both are well-formed.
  contains =
    cidr: text:
    let
      network = (parseCidr cidr).value;
      parts = splitString "/" network.canonical;
      found = unmap (address text);
    in
    network.family == (if isV4 found then 4 else 6)
    && truncate found (number (last parts)) == address (lib.head parts);

  # { value } or { problem }, a sentence that says what to write instead.
  parseCidr =
    text:
    let
      parts = splitString "/" text;
      groups = address (lib.head parts);
      digits = elemAt parts 1;
      bits = if isV4 groups then 32 else 128;
      prefix = number digits;
      alone = address text;
      shown = show (truncate groups prefix);
      mapped = isMapped groups && prefix >= 96;
    in
    if length parts == 1 && alone != null then
      {
        problem = "`${text}` has no prefix length; write `${text}/${
          if isV4 alone then "32" else "128"
        }` for this one address";
      }
    else if
      length parts != 2 || groups == null || builtins.match "[0-9]{1,3}" digits == null || prefix > bits
    then
      {
        problem = "`${text}` is no network; write an address and a prefix length, as in `10.10.0.0/16` or `2001:db8::/32`";
      }
    else if truncate groups prefix != groups then
      { problem = "`${text}` has host bits set; write `${shown}/${toString prefix}`"; }
    else
      {
        value = {
          inherit text;
          family = if isV4 groups || mapped then 4 else 6;
          # As nftables takes it.
          canonical =
            if mapped then
              "${show (unmap groups)}/${toString (prefix - 96)}"
            else
              "${shown}/${toString prefix}";
        };
      };

  parseAddress =
    text:
    let
      groups = address text;
      canonical = unmap groups;
      v4 = isV4 canonical;
    in
    if groups == null then
      {
        problem = "`${text}` is no address; write one as in `127.0.0.1` or `::1`, or `0.0.0.0` or `::` for every address";
      }
    else
      {
        value = {
          inherit text;
          family = if v4 then 4 else 6;
          canonical = show canonical;
          isWildcard = isNull groups;
          isLoopback =
            if v4 then lib.head canonical / 256 == 127 else canonical == zeros 7 ++ [ 1 ];
        };
      };
}
