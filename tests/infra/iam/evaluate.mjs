// Reads {policy, action, resource, context} requests as JSON, prints each one's result by AWS's rules of evaluation.
import { readFileSync } from 'node:fs'
import { runSimulation } from '@cloud-copilot/iam-simulate'

const results = []
for (const { policy, action, resource, context } of JSON.parse(readFileSync(0, 'utf8'))) {
  const simulation = {
    identityPolicies: [{ name: 'role', policy }],
    serviceControlPolicies: [],
    resourceControlPolicies: [],
    request: {
      principal: 'arn:aws:iam::123456789012:role/role',
      action,
      resource: { resource, accountId: '123456789012' },
      contextVariables: context
    }
  }
  if (action.startsWith('kms:')) {
    simulation.resourcePolicy = {
      Version: '2012-10-17',
      Statement: [{ Effect: 'Allow', Principal: { AWS: 'arn:aws:iam::123456789012:root' }, Action: 'kms:*', Resource: '*' }]
    }
  }
  const answer = await runSimulation(simulation, {})
  results.push(answer.errors ? `error: ${JSON.stringify(answer.errors)}` : answer.analysis?.result ?? answer.overallResult)
}
console.log(JSON.stringify(results))
