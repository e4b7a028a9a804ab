// about: bodies print nested, captures as their last inputs
module "body"
symbol B

graph(%flag : bool[], %x : f32[B, 2]) {
  %y = if(%flag, %x) {num_captures = 1} body(%x : f32[B, 2]) {
    %0 = neg(%x) : f32[B, 2]
    return %0 as %then
  }
  body(%x : f32[B, 2]) {
    return %x as %else
  } : f32[B, 2]
  return %y
}
