// pass: fuse
symbol B
weight @g : f16[16] role=param = random(1)

graph(%x : f16[B, 16]) {
  %g = weight @g
  %eps = literal f32[] 1e-06
  %w = cast(%x) {to = f32}
  %q = mul(%w, %w)
  %v = reduce_mean(%q) {axes = [1]}
  %e = add(%v, %eps)
  %d = sqrt(%e)
  %n = div(%w, %d)
  %h = cast(%n) {to = f16}
  %y = mul(%g, %h)
  return %y
}

// ----
module "model"
symbol B
weight @g : f16[16] role=param = random(1)

graph(%x : f16[B, 16]) {
  %g = weight @g
  %y = rms_norm(%x, %g) {epsilon = 1e-06} : f16[B, 16]
  return %y
}
