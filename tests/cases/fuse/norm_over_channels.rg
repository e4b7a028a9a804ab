// pass: fuse
symbol B
symbol H

graph(%x : f32[B, 8, H]) {
  %eps = literal f32[] 1e-06
  %m = reduce_mean(%x) {axes = [1]}
  %c = sub(%x, %m)
  %q = mul(%c, %c)
  %v = reduce_mean(%q) {axes = [1]}
  %e = add(%v, %eps)
  %d = sqrt(%e)
  %y = div(%c, %d)
  return %y
}

// ----
module "model"
symbol B
symbol H

graph(%x : f32[B, 8, H]) {
  %0 = literal f32[8] [1, 1, 1, 1, 1, 1, 1, 1]
  %1 = transpose(%x) {perm = [0, 2, 1]} : f32[B, H, 8]
  %2 = layer_norm(%1, %0) {epsilon = 1e-06} : f32[B, H, 8]
  %y = transpose(%2) {perm = [0, 2, 1]} : f32[B, 8, H]
  return %y
}
