// Of Wycheproof, only the test vectors are used: no Go is built.
module toolward.dev/e2e/wycheproof

go 1.26.0

require github.com/c2sp/wycheproof v0.0.0-20260902155932-3fa63dd0344a
