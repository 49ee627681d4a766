// Reads [[method, target], ...] for argv[2] ("express" or "url") from stdin and prints
// the list of the handlers that ran (null for none). Handlers are [name, method, path] in argv[3].
const kind = process.argv[2]
const handlers = JSON.parse(process.argv[3])
const requests = JSON.parse(require('fs').readFileSync(0, 'utf8'))

// The idiom of servers without a framework: `new URL` splits, each segment is decoded.
function byUrl () {
  const routes = handlers.map(([name, method, path]) => {
    const pattern = path.replace(/\{rest:\*\}/, '(?:.*)').replace(/\{\w+\}/g, '[^/]+')
    return [name, method, new RegExp(`^${pattern}$`)]
  })
  return (method, target) => {
    let path
    try {
      path = decodeURI(new URL(target, 'http://localhost').pathname)
    } catch { return null }
    for (const [name, verb, pattern] of routes) {
      if (verb === method && pattern.test(path)) return name
    }
    return null
  }
}

function byExpress () {
  const express = require('express')
  const app = express()
  let ran = null
  for (const [name, method, path] of handlers) {
    const route = path.replace('{rest:*}', '*').replace(/\{(\w+)\}/g, ':$1')
    app[method.toLowerCase()](route, () => { ran = name })
  }
  return (method, target) => {
    ran = null
    const nothing = () => {}
    const res = { setHeader: nothing, getHeader: nothing, removeHeader: nothing, end: nothing }
    app.handle({ method, url: target, headers: {} }, res, nothing)
    return ran
  }
}

const route = { url: byUrl, express: byExpress }[kind]()
console.log(JSON.stringify(requests.map(([method, target]) => route(method, target))))
